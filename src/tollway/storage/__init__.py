"""Stored state: the only package that contains SQL.

Owns: the database and its transactions, the tables, one module of queries per resource, sealing of credentials, migrations, the archive.
Does not own: rules (they are in `domain`), who may do what (in `control.identity.access`), or when a transaction begins: routes open it.
May import: `wire`, `domain`, SQLAlchemy, Alembic, the database drivers, cryptography.
"""
