"""What becomes of the events: kept in ClickHouse (hot), moved to where they stay (cold), and read again."""
