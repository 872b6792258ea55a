"""The command line: what a person types, and what they read.

Owns: options, tables, exit codes, the declarative file. Does not own: what a command does. Commands that work on a
running installation speak its public REST API; only those that start processes or read files know the packages below. May
import: `serve`, `settings`, and for `migrate`, `verify`, `spool` and `simulate` the package they open."""
