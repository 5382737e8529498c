"""Sources of rows: one file per source, one small protocol (`sae.data.source`)."""
