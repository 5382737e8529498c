"""The choices that make a method: one file per kind of choice, one small class per choice."""
