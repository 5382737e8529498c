"""A definition in, a folder of results out; parts of a sweep as processes and jobs."""
