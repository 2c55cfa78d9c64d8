"""What a run would take, before a weight is read: shapes, bytes, machines, hours."""
