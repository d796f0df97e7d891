"""The Lance tables of a store: memories, and one table for each lane. The only importer of LanceDB."""
