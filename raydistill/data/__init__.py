"""Images: named data sets, their splits, views of them, and sets that live on a device."""
