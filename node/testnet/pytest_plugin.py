"""The pytest fixture for whoever builds on RadLedger."""
