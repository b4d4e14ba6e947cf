"""What joins the parts into a service: the only package beside the command line that imports connectors, mergers and reconcile."""
