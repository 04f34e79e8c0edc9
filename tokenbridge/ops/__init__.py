"""Operations on runs and models: run, promote, plan, exchange, serve."""
