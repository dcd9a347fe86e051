"""From graded pairs to a bundle: teacher, distillation pairs, student, calibration, and how good the result is."""
