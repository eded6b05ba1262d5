"""Several models into one: methods as recipes, α, the engine that carries recipes out, the check afterwards."""
