"""Public pairs on public data sets, with the published figures beside ours."""
