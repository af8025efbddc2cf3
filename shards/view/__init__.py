"""The browser page: `python -m shards view PLACE`, and the report it exports. Needs the extra `view`."""
