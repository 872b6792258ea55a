"""Every parser of foreign bytes, fed with what nobody would send.

`parsers`: what each must never do, as a function of bytes. `seeds`: where the search begins, and a mutator that needs nothing.
`hunt`: the search itself, guided by coverage (atheris), one parser a process. `__main__`: all of them for so many seconds, with a
line of results. `findings/`: inputs that once broke something; the tests always try them.
"""
