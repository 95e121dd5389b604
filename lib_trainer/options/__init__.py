"""Options: declared once beside their fields, and described for forms, files, commands and documents."""
