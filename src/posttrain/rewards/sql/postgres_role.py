"""What a PostgreSQL role could do beyond reading, in SQL about SQL."""

from __future__ import annotations

from typing import Any

_HARMLESS = (
    "'random', 'random_normal', 'setseed', 'clock_timestamp', 'timeofday', 'gen_random_uuid', 'uuid_generate_v4'"
)

# Everything with side effects must be declared VOLATILE; the others here run SQL that they are given as text.
SIDE_EFFECTS = f"""
    SELECT DISTINCT lower(proname) FROM pg_catalog.pg_proc
    WHERE prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype)
      AND (provolatile = 'v' OR proname ~ '_to_xml(schema|_and_xmlschema)?$'
           OR proname ~ '^(pg_read|pg_ls|dblink|txid_current|pg_current_xact)')
      AND proname NOT IN ({_HARMLESS})
"""
"""Names of functions that a statement may not call."""

_POWERS = """
    WITH worn AS (
      SELECT oid, rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication
      FROM pg_catalog.pg_roles WHERE pg_has_role(session_user, oid, 'MEMBER')
    ), own AS (
      SELECT c.oid, c.relkind, c.relname, n.nspname
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
    )
    SELECT 1 AS place, CASE WHEN rolname = session_user THEN 'is a superuser'
                            ELSE 'may become the superuser ' || quote_ident(rolname) END
      FROM worn WHERE rolsuper
    UNION ALL
    SELECT 2, 'may create roles or databases, or replicate' FROM worn
      WHERE rolcreaterole OR rolcreatedb OR rolreplication
    UNION ALL
    SELECT 3, 'is a member of ' || rolname FROM worn WHERE rolname IN (
      'pg_write_all_data', 'pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files',
      'pg_signal_backend', 'pg_maintain', 'pg_create_subscription')
    UNION ALL
    SELECT 4, 'may write to ' || quote_ident(nspname) || '.' || quote_ident(relname) FROM worn w, own c
      WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND (
        has_table_privilege(w.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
        OR has_any_column_privilege(w.oid, c.oid, 'INSERT, UPDATE, REFERENCES'))
    UNION ALL
    SELECT 5, 'may move the sequence ' || quote_ident(nspname) || '.' || quote_ident(relname) FROM worn w, own c
      WHERE relkind = 'S' AND has_sequence_privilege(w.oid, c.oid, 'USAGE, UPDATE')
    UNION ALL
    SELECT 6, 'may create objects in the schema ' || quote_ident(nspname) FROM worn w, pg_catalog.pg_namespace n
      WHERE nspname !~ '^pg_' AND has_schema_privilege(w.oid, n.oid, 'CREATE')
    UNION ALL
    SELECT 7, 'may create schemas in this database' FROM worn w
      WHERE has_database_privilege(w.oid, current_database(), 'CREATE')
    UNION ALL
    SELECT 8, 'may call ' || proname FROM worn w, pg_catalog.pg_proc p
      WHERE proname IN ('pg_read_file', 'pg_read_binary_file', 'pg_ls_dir', 'pg_stat_file', 'lo_import', 'lo_export',
                        'pg_file_write', 'pg_reload_conf', 'pg_rotate_logfile')
        AND has_function_privilege(w.oid, p.oid, 'EXECUTE')
    ORDER BY 1, 2
"""
_SHOWN = 3


def complaint(connection: Any) -> str | None:
    """Why the role of a connection is none to run a model's statements under; None where it may only read."""
    found = list(dict.fromkeys(row[1] for row in connection.execute(_POWERS)))
    if not found:
        return None
    role = connection.execute("SELECT session_user").fetchone()[0]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (
        f"the role {role!r} {'; '.join(found[:_SHOWN])}{more}. Statements that a model wrote run under a role that may "
        "SELECT and nothing else: make one as docs/rewards.md shows, or set allow_privileged_role: true to trust the "
        "read-only transaction alone"
    )
