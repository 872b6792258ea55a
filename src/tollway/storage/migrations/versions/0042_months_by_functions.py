"""Let functions of the owner make and drop the months of events, because the role that runs control owns no table."""

from alembic import op

revision = "0042"
down_revision = "0038"
branch_labels = None
depends_on = None

MAKE = """
CREATE FUNCTION make_event_month(month text, first_id text, end_id text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE part text := 'usage_events_' || month; early boolean;
BEGIN
  IF month !~ '^[0-9]{4}_[0-9]{2}$' OR first_id !~ '^req_[0-9a-f]{12}$' OR end_id !~ '^req_[0-9a-f]{12}$' OR first_id >= end_id
  THEN RAISE EXCEPTION 'not a month of events'; END IF;
  EXECUTE format('SELECT EXISTS (SELECT 1 FROM usage_events_default WHERE event_id >= %L AND event_id < %L)', first_id, end_id) INTO early;
  IF early THEN ALTER TABLE usage_events DETACH PARTITION usage_events_default; END IF;
  EXECUTE format('CREATE TABLE %I PARTITION OF usage_events FOR VALUES FROM (%L) TO (%L)', part, first_id, end_id);
  IF early THEN
    EXECUTE format('WITH moved AS (DELETE FROM usage_events_default WHERE event_id >= %L AND event_id < %L RETURNING *)'
      ' INSERT INTO %I SELECT * FROM moved', first_id, end_id, part);
    ALTER TABLE usage_events ATTACH PARTITION usage_events_default DEFAULT;
  END IF;
  EXECUTE format('CREATE TRIGGER %I BEFORE TRUNCATE ON %I EXECUTE FUNCTION refuse_change()', part || '_refuses_truncate', part);
  EXECUTE format('CREATE TRIGGER event_in_open_period AFTER INSERT ON %I REFERENCING NEW TABLE AS added'
    ' FOR EACH STATEMENT EXECUTE FUNCTION event_in_open_period()', part);
  EXECUTE format('GRANT DELETE, INSERT, SELECT, UPDATE ON %I TO tollway_platform', part);
END $$
"""

DROP = """
CREATE FUNCTION drop_event_month(month text, start_at bigint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  IF month !~ '^[0-9]{4}_[0-9]{2}$' OR month <> to_char(to_timestamp(start_at / 1000000) AT TIME ZONE 'UTC', 'YYYY_MM')
    OR NOT EXISTS (SELECT 1 FROM removed_months AS removed WHERE removed.start_at = drop_event_month.start_at)
  THEN RAISE EXCEPTION 'this month was not recorded as removed'; END IF;
  EXECUTE format('ALTER TABLE usage_events DETACH PARTITION %I', 'usage_events_' || month);
  EXECUTE format('DROP TABLE %I', 'usage_events_' || month);
END $$
"""

SIGNATURES = ("make_event_month(text, text, text)", "drop_event_month(text, bigint)")


def upgrade() -> None:
    """Create the functions, which find their tables whoever calls them. Who may call them is said by `storage.row_security`."""
    if op.get_bind().dialect.name == "sqlite":
        return
    schema = op.get_bind().exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    for function, signature in zip((MAKE, DROP), SIGNATURES, strict=True):
        op.execute(function)
        op.execute(f"ALTER FUNCTION {signature} SET search_path = {schema}, pg_temp")
