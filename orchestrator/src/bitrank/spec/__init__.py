"""Data types that describe runs: specs, configs, rules, profiles, plan files."""
