"""What tests share: servers, engines, small runs and models, machines."""
