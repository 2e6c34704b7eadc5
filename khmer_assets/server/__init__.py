"""What runs while people ask: the gateway, the engines and the supervisor that keeps them up."""
