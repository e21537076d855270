"""Keys that several training methods share; each method's `Options` derives from one of these."""
