"""The loop: encode and decode are the same walk."""

from noisebook.runtime.native import warn_without_native

warn_without_native()  # here, so that nobody encodes or decodes without having seen it
