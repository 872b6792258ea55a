-- Roles of the database, as docs/deployment.md describes them; the image of PostgreSQL makes tollway_owner, whose tables they are.
CREATE ROLE tollway_platform;
CREATE ROLE tollway_tenant;
CREATE ROLE tollway LOGIN PASSWORD 'evaluation' IN ROLE tollway_platform, tollway_tenant;
