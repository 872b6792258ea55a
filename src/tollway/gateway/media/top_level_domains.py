"""Top-level domains under which names are public, beside those of countries (two letters).

Only delegated domains stand here (RFC 1591, RFC 2606, RFC 6761): a name under any other resolves inside a network alone. Domains that are
common names in private networks (`box` of home routers, `prod`) are left out although they are delegated, and so are the brands of
companies that publish nothing there. A generic domain that is missing is refused with an answer that names the place; a data: URL
carries the same picture.
"""

GENERIC = frozenset(
    """
    academy accountant accountants actor adult aero agency apartments app architect army arpa art asia associates attorney auction
    audible audio author auto autos aws azure baby band bank bar barcelona basketball bayern beauty beer berlin best bet bible bid bike
    bingo bio biz black blog blue boats bond book boston bot boutique broadway broker brussels build builders business buy buzz cab cafe
    cam camera camp capetown capital car cards care career careers cars casa case cash casino cat catering center ceo charity chat cheap
    christmas church city claims cleaning click clinic clothing cloud club coach codes coffee college cologne com community company
    computer condos construction consulting contact contractors cooking cool coop country coupons courses credit creditcard cricket
    cruises cymru dance date dating day deal dealer deals degree delivery democrat dental dentist design dev diamonds diet digital
    direct directory discount diy doctor dog domains download durban earth eat eco edu education email energy engineer engineering
    enterprises equipment esq estate eus events exchange expert exposed express fail faith family fan fans farm fashion feedback film
    finance financial fish fishing fit fitness flights florist flowers food football forex forsale forum foundation free frl fun fund
    furniture futbol fyi gal gallery game games garden gay gent gift gifts gives giving glass global gmbh gold golf goog google gov
    graphics gratis green gripe grocery group guide guitars guru hair hamburg haus health healthcare help helsinki hiphop hiv hockey
    holdings holiday homes horse hospital host hosting hot hotels house how icu immo immobilien inc industries info ing ink institute
    insurance insure int international investments irish ist istanbul jetzt jewelry jobs joburg juegos kaufen kids kim kitchen kiwi
    koeln krd kyoto land lat latino law lawyer lease legal lgbt life lifestyle lighting limited limo link live living llc loan loans
    locker lol london lotto love ltd ltda luxe luxury madrid maison makeup management market marketing markets mba med media meet
    melbourne meme memorial men menu miami microsoft mil mobi mobile moda moe mom money monster mortgage moscow motorcycles mov movie
    museum music nagoya name navy net network new news nexus ngo ninja nowruz nrw nyc observer okinawa one ong onl online ooo org
    organic osaka page paris pars partners parts party pet pharmacy phd phone photo photography photos physio pics pictures pid pink
    pizza place plumbing plus poker porn post press prime pro productions prof promo properties property protection pub qpon quebec
    quest racing radio realestate realtor realty recipes red rehab reise reisen reit rent rentals repair report republican rest
    restaurant review reviews rich rio rip rocks rodeo rsvp rugby ruhr run ryukyu saarland sale salon sarl sbs scholarships school
    schule science scot search secure security select services sex sexy shiksha shoes shop shopping show singles site ski skin smart
    soccer social software solar solutions soy spa space sport spot srl storage store stream studio study style sucks supplies supply
    support surf surgery swiss sydney systems taipei tatar tattoo tax taxi team tech technology tel tennis theater theatre tickets
    tienda tips tires tirol today tokyo tools top tours town toys trade trading training travel trust tube university uno vacations vana
    vegas ventures versicherung vet viajes video villas vin vip vision vlaanderen vodka vote voting voto voyage wales wang watch watches
    weather webcam website wed wedding weibo whoswho wien wiki win wine winners work works world wtf xxx yachts yoga yokohama you
    youtube zip zone zuerich xn--3e0b707e xn--80adxhks xn--80ao21a xn--80asehdb xn--80aswg xn--90a3ac xn--90ae xn--90ais xn--c1avg
    xn--d1acj3b xn--fiq228c5hs xn--fiqs8s xn--fiqz9s xn--h2brj9c xn--j1amh xn--j6w193g xn--kprw13d xn--kpry57d xn--mgbaam7a8h
    xn--mgberp4a5d4ar xn--o3cw4h xn--p1acf xn--p1ai xn--qxam xn--vhquv xn--wgbh1c xn--wgbl6a xn--xkc2al3hye2a xn--ygbi2ammx
    """.split()  # noqa: SIM905 - hundreds of quotes would hide the words
)
