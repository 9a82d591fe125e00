"""llama.cpp's own HTTP server, through the ready-made wheel `xllamacpp`: real tokens on any CPU."""
