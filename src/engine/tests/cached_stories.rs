//! Runs with the prompt cache that are told step by step.
