"""Run folders: stages that run once, their records and fingerprints."""
