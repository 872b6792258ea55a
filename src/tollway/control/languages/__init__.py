"""Languages of the pages for people: their texts in each (`de.po`), and numbers, money and instants as a language writes them.

Owns the catalogues, and which language a page is in. Does not own the texts themselves: templates and modules say them in English, and
`make messages` collects them. May import `domain` alone.
"""
