"""Scripts that measure; results/ holds their figures."""
