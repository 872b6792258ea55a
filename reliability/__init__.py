"""The reliability figures: what was broken on purpose, how often, and what it cost. Rendered into docs/reliability.md.

Owns: platforms of real processes (platforms.py, processes.py), clients that count what reaches them (load.py), the check of bills
(bill_checks.py), one module for each figure, their results. tests/system/ uses the same platforms and the same check for its promises; a
figure is such a promise, tried often enough for a number. Does not own: speed (bench/).
"""
