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

-- Whether a line is a row of a table: three columns, with two spaces or more between them.
local function is_row(line)
  return line:find("%S  +%S.*%S  +%S") ~= nil
end

-- What a cell prints wraps at the end of the line, unless it is a table, which scrolls.
function Div(div)
  if not div.classes:includes("cell-output") then
    return nil
  end
  return div:walk({
    CodeBlock = function(block)
      for line in block.text:gmatch("[^\n]+") do
        if is_row(line) then
          return nil
        end
      end
      block.classes:insert("wrapped")
      return block
    end,
  })
end

-- A class without a constructor of its own is documented with the arguments of Python's object, which it does not take: its name is shown alone.
function CodeBlock(block)
  local name = block.text:match("^def (%u%w*)%(\n%s+%*args, %*%*kwargs\n%):?$")
  if name then
    block.text = "class " .. name .. ":"
    return block
  end
end

-- A long formula inside a line does not break, as words do: it may scroll by itself where the screen is narrow (see theme.scss).
function Math(formula)
  if formula.mathtype == "InlineMath" and #formula.text > 40 then
    return pandoc.Span({ formula }, pandoc.Attr("", { "long-formula" }))
  end
end
