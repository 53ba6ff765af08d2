"""What the SQL key store and the SQL ledger share: tables, engine, migrations."""
