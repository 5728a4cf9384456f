-- A figure is shown at the size that it was drawn for: its width in dots, its dots an inch, and 96 dots of the page an inch. Pictures that do not
-- say how many dots an inch they have are shown dot for dot.
function Image(image)
  local file = io.open(image.src, "rb")
  if image.attributes.width or not file then
    return nil
  end
  local bytes = file:read("a")
  file:close()
  local known, size = pcall(pandoc.image.size, bytes)
  if known and bytes:find("pHYs", 1, true) then
    image.attributes.width = string.format("%d", math.floor(size.width * 96 / size.dpi_horz + 0.5))
    return image
  end
end
