"""A store in and out: Parquet exports, backups, and their way back."""
