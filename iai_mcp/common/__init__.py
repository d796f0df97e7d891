"""General helpers without knowledge of memories: files, times, arrays, wording."""
