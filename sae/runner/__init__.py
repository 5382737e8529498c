"""A definition in, a folder of results out.

run         how a run goes, on one page
options     how it is carried out: RunOptions
prepare     the folder of a run, and its sweep cut into cohorts
training    one cohort, from its last checkpoint to its evaluation
finish      measures, claims and report, when all members are trained
signals     what a run does at SIGINT and SIGTERM
launchers/  parts of a sweep as processes and as Slurm jobs
"""
