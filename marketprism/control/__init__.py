"""The control plane: knows workers by what the supervisor, the process table and the shared metrics say."""
