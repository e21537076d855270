"""What an inference server loads, and how a release is put in place."""
