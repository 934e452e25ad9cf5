"""`radledger demo`: four hospitals on this machine, start to finish."""
