"""What people read: terminal lines, TensorBoard pages and reports."""
