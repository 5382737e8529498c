"""Many members at once: cohorts, compiled programs, placement, plan and cost, the loop, checkpoints, processes."""
