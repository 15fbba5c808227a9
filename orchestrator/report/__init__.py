"""report.html: a sweep on one page that opens without a network, made by plotly and Optuna."""
