"""Training: teacher, light student and res-students, from a recipe to a run folder."""
