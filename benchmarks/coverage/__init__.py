"""Public architectures with dead channels, cut by demport: what goes, whether it is exact, why the rest stays."""
