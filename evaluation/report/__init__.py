"""What people look at: report.html, the comparison of runs, sheets of samples."""
