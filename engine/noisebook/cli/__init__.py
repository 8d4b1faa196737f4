"""The command line: one file per verb or family of verbs. argparse lives here and nowhere else."""
