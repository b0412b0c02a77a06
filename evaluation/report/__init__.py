"""Output for people: report.html, the comparison of runs, the sheet of samples."""
