"""Where runs are started, from the clone; what to run and the report are `user_llm.launch`."""
