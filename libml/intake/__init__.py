"""Pictures, tables and archives from the world, made into record files."""
