"""What is asked of a sweep: members, answers, figures, measures, quantities and claims."""
