"""From the publishers' original files to RecBole's atomic files.

A module for each publisher has one function ``read(source, options) -> Tables``; it is entered in
:data:`recbole_adv.data.conversion.convert.READERS`.
"""
