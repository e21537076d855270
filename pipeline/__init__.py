"""What happens, in order: the commands, the line, and everything its stages call."""
